def report(settings, inputs, run):
    (run.folder / "report.html").write_text("")
    return {}
