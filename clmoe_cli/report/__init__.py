"""Reports as people see them: text, tables, progress, figures, an HTML page."""
