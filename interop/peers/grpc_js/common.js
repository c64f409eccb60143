// What the JavaScript client and server share: see python/messages.py, which says the same in Python.
'use strict';

const crypto = require('crypto');
const fs = require('fs');
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

// What python/tls.py says in Python: the options, and the credentials made of them.
const TLS_OPTIONS = {
  'tls-ca': { type: 'string' },
  'tls-certificate': { type: 'string' },
  'tls-key': { type: 'string' },
};

function tlsFiles(values) {
  return Object.keys(TLS_OPTIONS).map((name) => (values[name] ? fs.readFileSync(values[name]) : null));
}

function channelCredentials(values) {
  const [ca, certificate, key] = tlsFiles(values);
  return ca ? grpc.credentials.createSsl(ca, key, certificate) : grpc.credentials.createInsecure();
}

function serverCredentials(values) {
  const [ca, certificate, key] = tlsFiles(values);
  if (!certificate) return grpc.ServerCredentials.createInsecure();
  return grpc.ServerCredentials.createSsl(ca, [{ private_key: key, cert_chain: certificate }], ca !== null);
}

module.exports = {
  MESSAGE_LIMIT, TLS_OPTIONS, body, channelCredentials, definition, describe, grouped, grpc, serverCredentials, sha256,
};
