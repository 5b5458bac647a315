"""What an idle session costs: memory and CPU with very many of them, each with one subscription.

    python bench/idle.py [--sessions 10000] [--seconds 30]

Memory is what the server's process grows by (RSS), per session; the kernel's socket buffers are not
in it. CPU is over `--seconds`, in which the wheel pings every session about once. Exit code 1 if a
session costs more than 4 KB.
"""

import argparse
import sys
import time

from _load import Fleet, galecast, on_load_core, raise_file_limit, subscriber

MOST_BYTES = 4096
_WARM_UP = 200


def main() -> int:
    """Print bytes per session and CPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=30.0)
    args = parser.parse_args()
    raise_file_limit()
    with on_load_core(), galecast() as server:
        # Whatever is loaded or grown once is there before the first reading.
        for sock in [subscriber(server.port, "bench.idle") for _ in range(_WARM_UP)]:
            sock.close()
        time.sleep(1.5)
        before = server.rss_bytes()
        fleet = Fleet([subscriber(server.port, "bench.idle") for _ in range(args.sessions)])
        time.sleep(1.5)
        each = (server.rss_bytes() - before) / args.sessions
        cpu, started = server.cpu_s(), time.perf_counter()
        while (left := args.seconds - (time.perf_counter() - started)) > 0:
            fleet.poll(left)
        share = (server.cpu_s() - cpu) / (time.perf_counter() - started)
        fleet.close()
    print(f"{args.sessions:,} idle sessions with one subscription each")
    print(f"memory  {each:8,.0f} bytes per session (at most {MOST_BYTES:,} asked)")
    print(f"CPU     {share * 100:8.2f} % of one core over {args.seconds:g} s")
    return 0 if each <= MOST_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
