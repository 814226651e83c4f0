"""`foveate find-layer`."""


def test_the_layer_where_images_may_end(run):
    found = run.json("find-layer", "--questions", "1", "--below", "0.01")
    assert found["rule"] == "vtw"
    assert [effect["layer"] for effect in found["effects"]] == list(range(1, 12))
    divergences = [effect["divergence"] for effect in found["effects"]]
    assert max(divergences) > 1e-3
    high = [effect["layer"] for effect in found["effects"] if effect["divergence"] > 0.01]
    assert found["layer"] == (high[-1] + 1 if high and high[-1] < 11 else None if high else 1)
    assert found["spec"] == (None if found["layer"] is None else f"vtw@{found['layer']}")


def test_what_leaves_nothing_to_search(refuse, tmp_path):
    assert "leave it out: pool:0.25" in refuse("find-layer", "pool:0.25@3")
    assert "asks nothing" in refuse("find-layer", "vtw", "--questions", "0")
    assert "before the encoder" in refuse("find-layer", "resize:0.5")
    assert "several steps" in refuse("find-layer", "cluster:16+vtw")
    assert "--below is -1; it must be at least 0" in refuse("find-layer", "--below", "-1")
    assert "there is no file" in refuse("find-layer", "--data", tmp_path / "none.jsonl")
    assert 'did you mean "vtw"' in refuse("find-layer", "vtv")
