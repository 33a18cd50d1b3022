"""The commands; `cli/app.py` registers them and holds `demo` and `methods`."""
