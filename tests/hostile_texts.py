"""Texts that try to be more than text."""

from r1_aqa_repro.data.questions import AudioQuestion

HOSTILE = (
    "<script>window.injected = 1; document.title = 'injected'</script>",
    "</script><script>window.injected = 1</script>",
    "<!--<script>",
    "]]></style></title></textarea><svg onload='window.injected=1'>",
    '"><img src=x onerror="window.injected=1">',
    "' onmouseover='window.injected=1' x='",
    "javascript:window.injected=1",
    "{{ 7 * 7 }} {% raw %} ${7*7} $x^{2$",
    "&lt;b&gt; &#x3c;script&#x3e; &amp",
    "🎵 👩‍👩‍👧 𝄞 naïve ﷽",
    "‮gnp.exe مرحبا שלום ‭left",
    "line\u2028separator\u2029and\x00nul\x1b[31m\r\nend\ttab",
)


def hostile_questions(folder, count):
    """Questions of which every text is hostile."""
    texts = [HOSTILE[index % len(HOSTILE)] for index in range(count + 4)]
    return [
        AudioQuestion(
            id=f"{index} {texts[index]}",
            audio_path=folder / f"javascript:clip {index}?#\"'<é>.wav",
            question=texts[index + 1],
            choices=(texts[index], texts[index + 2], "a " + texts[index + 3], "no"),
            answer=texts[index + 2],
            task=texts[index],
            difficulty=texts[index + 1],
            category=texts[index + 2],
            sub_category=texts[index + 3],
            flags=(texts[index],),
        )
        for index in range(count)
    ]
