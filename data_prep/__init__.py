"""Preparation of data: AVQA and MMAU to manifests with 16 kHz clips beside them, preference pairs to TRL's form."""
