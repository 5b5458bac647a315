from config.settings import Settings, dev_origins
from server.tie import Share


def test_the_share_of_a_worker() -> None:
    share = Share(index=2, port=8001, node="n-2", broker_url="unix:///redis.sock")
    settings = Settings(port=0, dev=True, admin_port=9000, node="n", workers=3)
    mine = share.of(settings)
    assert (mine.port, mine.admin_port, mine.node) == (8001, 9002, "n-2")
    assert mine.broker.url == "unix:///redis.sock"
    # The pages that this machine serves there.
    assert mine.origins == dev_origins(8001)
    other = Share(index=1, port=8000, node="n-1", broker_url=None).of(Settings())
    assert other.admin_port == 0
    assert other.origins == ()
    assert other.broker == Settings().broker
