"""Reports of evaluations for people: `markdown` for report.md, `page` for report.html, their charts and templates."""
