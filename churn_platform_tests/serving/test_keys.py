import pytest

from serving.keys import Keys, KeysError, RateLimit, hashed, line, read


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def file(tmp_path, *pairs, head=""):
    path = tmp_path / "keys"
    path.write_text(head + "".join(f"{name}:{hashed(key)}\n" for name, key in pairs))
    return path


def test_a_key_is_known_by_its_hash_and_any_other_text_is_not(tmp_path, clock):
    path = file(tmp_path, ("shop", "secret-1"), ("crm", "secret-2"), head="# who may ask\n\n")
    keys = Keys(path, clock)
    assert "secret" not in path.read_text()
    assert [keys.owner(key) for key in ("secret-1", "secret-2", "secret-3", "", hashed("secret-1"))] == [
        "shop",
        "crm",
        None,
        None,
        None,
    ]


def test_while_a_key_is_changed_over_the_old_and_the_new_one_hold(tmp_path, clock):
    keys = Keys(file(tmp_path, ("shop", "old"), ("shop", "new")), clock)
    assert keys.owner("old") == keys.owner("new") == "shop"


def test_a_changed_file_is_read_again_without_a_restart(tmp_path, clock):
    keys = Keys(file(tmp_path, ("shop", "old")), clock)
    file(tmp_path, ("shop", "a new one"))
    clock.now += 2
    assert (keys.owner("old"), keys.owner("a new one")) == (None, "shop")


def test_a_file_that_was_spoilt_later_leaves_the_keys_as_they_were_and_is_said(tmp_path, clock):
    path = file(tmp_path, ("shop", "key"))
    keys = Keys(path, clock)
    path.write_text("shop:not a hash\n")
    clock.now += 2
    assert keys.owner("key") == "shop"
    assert "line 1: not name:sha256" in keys.problem
    path.unlink()
    clock.now += 2
    assert keys.owner("key") == "shop"
    file(tmp_path, ("shop", "key"), ("crm", "key-2"))
    clock.now += 2
    assert (keys.owner("key-2"), keys.problem) == ("crm", "")


@pytest.mark.parametrize("text", ["", "# nobody\n", "shop\n", "shop:secret\n", "a b:" + "0" * 64, "shop:" + "G" * 64])
def test_a_file_that_gives_nobody_access_is_refused_with_what_to_do(tmp_path, text):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(KeysError, match="churn api-key NAME"):
        read(path)


def test_the_line_of_a_key_can_be_read_back(tmp_path):
    (tmp_path / "keys").write_text(line("shop", "secret"))
    assert read(tmp_path / "keys") == {hashed("secret"): "shop"}
    with pytest.raises(KeysError, match="letters, digits"):
        line("a:b", "secret")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(KeysError, match="cannot be read"):
        read(tmp_path / "none")


def test_a_burst_passes_and_then_the_rate_holds(clock):
    limit = RateLimit(rate=2, burst=3, clock=clock)
    assert [limit.wait("shop") for _ in range(4)] == [0, 0, 0, pytest.approx(0.5)]
    clock.now += 0.5
    assert limit.wait("shop") == 0
    assert limit.wait("shop") > 0


def test_one_key_does_not_use_up_anothers_share(clock):
    limit = RateLimit(rate=1, burst=1, clock=clock)
    assert limit.wait("shop") == 0
    assert limit.wait("shop") > 0
    assert limit.wait("crm") == 0


def test_what_was_not_used_is_not_saved_up_beyond_the_burst(clock):
    limit = RateLimit(rate=10, burst=2, clock=clock)
    clock.now += 1000
    assert [limit.wait("shop") > 0 for _ in range(3)] == [False, False, True]


def test_a_dear_request_passes_with_a_full_bucket_and_is_paid_for_afterwards(clock):
    limit = RateLimit(rate=10, burst=5, clock=clock)
    assert limit.wait("shop", cost=100) == 0
    assert limit.wait("shop") == pytest.approx(9.6)
