"""`minillm play`: a page in the browser to look inside a model and its adapters."""
