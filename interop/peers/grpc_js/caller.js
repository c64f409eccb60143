// Caller in @grpc/grpc-js: see ../python/caller.py.
'use strict';

const { parseArgs } = require('util');
const { MESSAGE_LIMIT, definition, grpc } = require('./common.js');

const OPTIONS = { 'grpc.max_receive_message_length': MESSAGE_LIMIT, 'grpc.max_send_message_length': MESSAGE_LIMIT };
const UNARY = definition['grpc.testing.TestService'].UnaryCall;
const STATUS = Object.fromEntries(
  Object.entries(grpc.status).filter(([, code]) => typeof code === 'number').map(([name, code]) => [code, name]),
);

const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

function unary(client, request, deadline) {
  const began = performance.now();
  return new Promise((resolve) => {
    const options = { deadline: Date.now() + deadline * 1000 };
    const answered = (error, response) => resolve({
      status: STATUS[error ? error.code : 0],
      message: error ? error.details : '',
      size: response ? response.payload.body.length : null,
      seconds: Math.round(performance.now() - began) / 1000,
    });
    client.makeUnaryRequest(
      UNARY.path, UNARY.requestSerialize, UNARY.responseDeserialize, request, new grpc.Metadata(), options, answered,
    );
  });
}

async function main() {
  const { values } = parseArgs({
    options: { target: { type: 'string' }, plan: { type: 'string' }, deadline: { type: 'string' } },
  });
  const client = new grpc.Client(values.target, grpc.credentials.createInsecure(), OPTIONS);
  for (const step of JSON.parse(values.plan)) {
    if (step.pause_s !== undefined) {
      await sleep(step.pause_s);
      continue;
    }
    const request = { response_size: step.response_size, payload: { body: Buffer.alloc(step.request_size) } };
    const calls = Array.from({ length: step.calls }, () => unary(client, request, Number(values.deadline)));
    console.log(JSON.stringify({ calls: await Promise.all(calls) }));
  }
  client.close();
}

main();
