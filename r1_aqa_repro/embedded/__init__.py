"""What comes with the project, so that a run needs no data and no checkpoint: made-up worlds and small models.

*Embedded* means this and nothing else: the embedded question set and text set, the embedded models, and an embedded
run, which uses them from nothing to its results.
"""
