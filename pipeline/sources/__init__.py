"""Where pictures come from: one module a layout, one protocol (`base.Source`)."""
