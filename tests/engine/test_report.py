import json

from foveate.engine.report import ImageCount, Report


def test_a_report_reads_well_and_is_data() -> None:
    image = ImageCount(before=576, layers=(64, 64), structural=0, grid=((24, 24),))
    report = Report("cluster:64", (image, image), 12.34)
    assert (report.before, report.after) == (1152, 128)
    text = str(report)
    assert "24x24" in text
    assert "cluster:64: 1152 -> 128 visual tokens (11.1%), compressor 12.3 ms" in text
    assert json.loads(json.dumps(report.to_dict()))["images"][1]["after"] == 64
    assert str(Report("cluster:64")) == "cluster:64: no image has come yet"


def test_tokens_of_each_layer() -> None:
    image = ImageCount(before=576, layers=(576, 576, 288, 72), structural=0, grid=((24, 24),))
    assert (image.after, image.mean_over_layers) == (72, 378)
    report = Report("pool", (image,))
    assert "576 -> 72 visual tokens (12.5%, 65.6% over all layers)" in str(report)
    assert report.to_dict()["images"][0]["layers"] == [576, 576, 288, 72]
