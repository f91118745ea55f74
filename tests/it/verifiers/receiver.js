// A receiver in JavaScript: verifies with `standardwebhooks`, reads with `cloudevents`, drops duplicates.
//
// Usage: receiver.js PORT SECRET
//
// Each message is a line of standard output. The first answer to a message is lost, as it were: it is a
// 503, so that each message comes again with the same `webhook-id`.
"use strict";

const http = require("node:http");
const { HTTP } = require("cloudevents");
const { Webhook, WebhookVerificationError } = require("standardwebhooks");

const [port, secret] = process.argv.slice(2);
const webhook = new Webhook(secret);
const seen = new Set();

function take(headers, body) {
  try {
    webhook.verify(body, headers);
  } catch (error) {
    if (error instanceof WebhookVerificationError) {
      return 401;
    }
    throw error;
  }
  const event = HTTP.toEvent({ headers, body: body.toString() });
  const message = headers["webhook-id"];
  if (seen.has(message)) {
    return 204;
  }
  seen.add(message);
  console.log(JSON.stringify({ message, event }));
  return 503;
}

http
  .createServer(async (request, response) => {
    const body = Buffer.concat(await request.toArray());
    response.writeHead(take(request.headers, body), { "content-length": 0 }).end();
  })
  .listen(Number(port), "127.0.0.1");
