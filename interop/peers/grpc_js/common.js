// What the JavaScript client and server share: see python/messages.py, which says the same in Python.
'use strict';

const crypto = require('crypto');
const path = require('path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const MESSAGE_LIMIT = 80 * 1024 * 1024;
const LONG_VALUE = 200;
const PATTERN = Buffer.from(Array.from({ length: 251 }, (_, i) => (i * i) % 251));

const definition = protoLoader.loadSync(path.join(__dirname, '..', 'test.proto'), {
  keepCase: true,
  defaults: true,
});

function body(size) {
  return Buffer.alloc(size, PATTERN);
}

function sha256(data) {
  return crypto.createHash('sha256').update(data).digest('hex');
}

function describe(message) {
  if ('aggregated_payload_size' in message) return { aggregated: message.aggregated_payload_size };
  const data = message.payload ? message.payload.body : Buffer.alloc(0);
  return { size: data.length, sha256: sha256(data) };
}

function metadataText(key, value) {
  if (key === 'date') return 'A DATE'; // it cannot be equal
  if (value.length > LONG_VALUE) {
    const data = Buffer.from(value);
    return `${data.length} bytes, sha256 ${sha256(data)}`;
  }
  return Buffer.isBuffer(value) ? `hex:${value.toString('hex')}` : value;
}

// From key to values, as outcomes show metadata.
function grouped(metadata) {
  return Object.fromEntries(
    Object.keys(metadata.getMap()).sort().map((key) => [key, metadata.get(key).map((value) => metadataText(key, value))]),
  );
}

module.exports = { MESSAGE_LIMIT, body, definition, describe, grouped, grpc, sha256 };
