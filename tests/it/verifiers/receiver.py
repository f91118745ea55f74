"""A receiver in Python: verifies with `standardwebhooks`, reads with `cloudevents`, drops duplicates.

Usage: receiver.py PORT SECRET

Each message is a line of standard output. The first answer to a message is lost, as it were: it is a 503,
so that each message comes again with the same `webhook-id`.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from cloudevents.core.formats.json import JSONFormat
from standardwebhooks import Webhook, WebhookVerificationError

port, secret = int(sys.argv[1]), sys.argv[2]
webhook = Webhook(secret)
seen = set()


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers["content-length"]))
        self.send_response(self.take(headers, body))
        self.send_header("content-length", "0")
        self.end_headers()

    def take(self, headers, body):
        try:
            webhook.verify(body, headers)
        except WebhookVerificationError:
            return 401
        event = from_http_event(HTTPMessage(headers=headers, body=body))
        message = headers["webhook-id"]
        if message in seen:
            return 204
        seen.add(message)
        event = json.loads(JSONFormat().write(event))
        # In one piece, since there is a thread for each connection.
        sys.stdout.write(json.dumps({"message": message, "event": event}) + "\n")
        sys.stdout.flush()
        return 503

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", port), Receiver).serve_forever()
