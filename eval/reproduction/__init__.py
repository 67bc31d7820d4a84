"""A study of R1-AQA as a whole: its bundle, the figures that follow from it, and what is reported of them."""
