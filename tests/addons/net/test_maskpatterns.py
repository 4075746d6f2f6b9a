from addons.net import maskpatterns


def test_patterns_that_cannot_be_kept(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    kept = []
    monkeypatch.setattr(maskpatterns.maskdetect, "warm", kept.append)
    maskpatterns.warm(str(tmp_path / "file"))
    assert kept == [None]
    assert "cannot be kept" in caplog.text


def test_once_for_all(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(maskpatterns.maskdetect, "warm", kept.append)
    for _ in range(2):
        maskpatterns.warm(str(tmp_path))
    assert kept == [str(tmp_path / "patterns")]
