import json

from foveate.engine.report import ImageCount, Report


def test_a_report_reads_well_and_is_data() -> None:
    image = ImageCount(before=576, after=64, structural=0, mean_over_layers=64.0, grid=((24, 24),))
    report = Report("cluster:64", (image, image), 12.34)
    assert (report.before, report.after) == (1152, 128)
    text = str(report)
    assert "24x24" in text
    assert "cluster:64: 1152 -> 128 visual tokens (11.1%), compressor 12.3 ms" in text
    assert json.loads(json.dumps(report.to_dict()))["images"][1]["after"] == 64
    assert str(Report("cluster:64")) == "cluster:64: no image has come yet"
