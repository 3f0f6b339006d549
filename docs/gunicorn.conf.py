# A configuration of gunicorn for applications that stream: copy it, and change what is different with you.
#
#     gunicorn -c gunicorn.conf.py "app:create_app()"

# With preload_app = True these must be the first two lines: gevent patches the standard library, and what is imported
# before that, and takes hold of a lock or a queue, later blocks everybody in the process. Otherwise gunicorn does it.
# from gevent import monkey
# monkey.patch_all()

import os

bind = "127.0.0.1:8000"

# An open stream costs some kilobytes instead of a thread, and a stop interrupts a function wherever it waits.
worker_class = "gevent"

# A worker is one processor. Several need Redis: without it each knows its own runs only.
workers = (os.cpu_count() or 1) if "FLASK_LLMSTREAM_REDIS_URL" in os.environ else 1

# Beyond them nothing is accepted, health checks included. LLMSTREAM_MAX_OPEN is 0.8 of them, and each stream takes two
# descriptors, so `ulimit -n` is to be above twice the streams: 2048 here.
worker_connections = 1000

# How long runs may go on in a worker that is told to go. What is left a tenth of it (3 s at least) before the end is
# closed as interrupted. So: as long as answers take, and less than whoever starts gunicorn waits before it kills
# (systemd TimeoutStopSec, 90 s; Kubernetes terminationGracePeriodSeconds, 30 s; Heroku 30 s).
graceful_timeout = 60

# No limit for a stream. A worker is ended whose event loop has stood still for so long, and with it all its streams.
timeout = 30

# For connections that a proxy keeps open. A worker that is told to go waits that long for idle ones.
keepalive = 5

# Off. It is a remedy for leaks, and each time all readers of a worker change their process; with one worker nobody is
# served between the last request that it accepts and the end of its last run. If you need it: thousands, several
# workers, and a jitter, so that they do not go at the same time.
max_requests = 0
max_requests_jitter = 0

# Off: with it a HUP starts workers with the old code, and no connection to the model is ready when the first visitor
# comes.
preload_app = False

# Whose X-Forwarded-Proto is believed: the proxy's on this machine. Where it has another address, that one; "*" only
# where nobody else can reach gunicorn. The application needs ProxyFix besides.
forwarded_allow_ips = "127.0.0.1,::1"

# All gunicorns of a user share one path for it by default, and two masters are how a deploy loses nothing.
control_socket_disable = True
