"""Preparation of AVQA and MMAU: from annotations and media files to a manifest with 16 kHz clips beside it."""
