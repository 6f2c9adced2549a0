"""Working with trained adapters: load, measure the effect, merge, combine, extract, and serve many on one base.

`minillm.adapt` offers the functions of these files too; `Adaptation.save` writes an adapter.
"""
