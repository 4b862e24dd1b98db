def test_x(record, evidence):
    from expunge.report import write_report
    write_report("/tmp/x/report", record, evidence)
