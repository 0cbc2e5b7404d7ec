"""Where records of sessions are kept beyond this process. ``store`` is what one must do, ``by_url`` picks one."""
