// The official Node SDK against a proxy: `node sdk.mjs URL CLIENT_KEY PEM` prints one line of JSON for each check. PEM is
// key and certificate of `localhost`: for WebSocket the SDK wants TLS.
// The names of the checks stand in test_sdk_node.py as well, which holds the two lists together.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import net from 'node:net';
import tls from 'node:tls';
import OpenAI, { toFile } from 'openai';
import { OpenAIRealtimeWebSocket } from 'openai/realtime/websocket';
import { OpenAIRealtimeWS } from 'openai/realtime/ws';

const [, , url, apiKey, pem] = process.argv;
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });

const messages = [{ role: 'user', content: "Wie geht's, Bär?" }];
const weather = {
  name: 'weather',
  parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
};
const chatTools = [{ type: 'function', function: weather }];
const png = '\x89PNG';

async function every(pages) {
  const all = [];
  for await (const one of pages) all.push(one);
  return all;
}

async function failure(promise, kind) {
  const error = await promise.then(
    () => assert.fail('no error came'),
    (error) => error,
  );
  assert.ok(error instanceof kind, `${error?.constructor?.name}: ${error?.message}`);
  return error;
}

function decoded(base64) {
  return Buffer.from(base64, 'base64').toString('latin1');
}

// What stands before a proxy that speaks no TLS of its own.
const terminator = tls.createServer({ key: readFileSync(pem), cert: readFileSync(pem) }, (client) => {
  const proxy = net.connect(new URL(url).port, '127.0.0.1');
  client.pipe(proxy).pipe(client);
  client.on('error', () => proxy.destroy());
  proxy.on('error', () => client.destroy());
});
await new Promise((listening) => terminator.listen(0, '127.0.0.1', listening));
terminator.unref();

async function talk(Realtime) {
  const secure = client.withOptions({ baseURL: `https://localhost:${terminator.address().port}/v1` });
  const realtime = new Realtime({ model: 'gpt-realtime' }, secure);
  const heard = [];
  await new Promise((done, failed) => {
    realtime.on('event', (event) => heard.push(event));
    realtime.on('error', failed);
    realtime.on('response.done', done);
    realtime.on('session.created', () => {
      const content = [{ type: 'input_text', text: "Wie geht's, Bär?" }];
      realtime.send({ type: 'conversation.item.create', item: { type: 'message', role: 'user', content } });
      realtime.send({ type: 'response.create' });
    });
  });
  realtime.close();
  const deltas = heard.filter((event) => event.type === 'response.output_audio_transcript.delta');
  const { output, usage } = heard.at(-1).response;
  assert.equal(deltas.map((event) => event.delta).join(''), output[0].content[0].transcript);
  assert.ok(output[0].content[0].transcript.includes("Wie geht's, Bär?"));
  assert.equal(usage.output_tokens, deltas.length);
}

const checks = {
  'a response is answered': async () => {
    const response = await client.responses.create({ model: 'gpt-4o-mini', input: "Wie geht's, Bär?" });
    assert.ok(response.output_text.includes("Wie geht's, Bär?"));
    assert.match(response._request_id, /^req_/);
  },

  'a response streams': async () => {
    const events = await every(await client.responses.create({ model: 'gpt-4o', input: 'Hello', stream: true }));
    const deltas = events.filter((event) => event.type === 'response.output_text.delta');
    const last = events.at(-1);
    assert.equal(events[0].type, 'response.created');
    assert.equal(last.type, 'response.completed');
    assert.equal(deltas.map((event) => event.delta).join(''), last.response.output[0].content[0].text);
    assert.equal(deltas.length, last.response.usage.output_tokens);
  },

  'a response calls a tool and hears its result': async () => {
    const tools = [{ type: 'function', strict: false, ...weather }];
    const first = await client.responses.create({ model: 'gpt-4o', input: 'Hello', tools });
    const [call] = first.output;
    assert.deepEqual(JSON.parse(call.arguments), { city: 'demo city' });
    const second = await client.responses.create({
      model: 'gpt-4o',
      input: [{ type: 'function_call_output', call_id: call.call_id, output: 'sunny' }],
      previous_response_id: first.id,
    });
    assert.ok(second.output_text.includes('sunny'));
  },

  'a response is fetched, listed and deleted': async () => {
    const { id, output } = await client.responses.create({ model: 'gpt-4o', input: 'one two three' });
    assert.deepEqual((await client.responses.retrieve(id)).output, output);
    const [item] = await every(client.responses.inputItems.list(id));
    assert.equal(item.content[0].text, 'one two three');
    await client.responses.delete(id);
    await failure(client.responses.retrieve(id), OpenAI.NotFoundError);
  },

  'chat is answered': async () => {
    const answer = await client.chat.completions.create({ model: 'gpt-4o', messages, n: 2 });
    assert.equal(answer.choices.length, 2);
    assert.ok(answer.choices[1].message.content.includes("Wie geht's, Bär?"));
    assert.match(answer._request_id, /^req_/);
  },

  'chat streams': async () => {
    const stream_options = { include_usage: true };
    const asked = { model: 'gpt-4o', messages, stream: true, stream_options };
    const chunks = await every(await client.chat.completions.create(asked));
    const deltas = chunks.map((chunk) => chunk.choices[0]?.delta.content).filter(Boolean);
    assert.ok(deltas.join('').includes("Wie geht's, Bär?"));
    assert.equal(chunks.at(-1).usage.completion_tokens, deltas.length);
  },

  'chat calls a tool and hears its result': async () => {
    const asked = { model: 'gpt-4o', tools: chatTools };
    const first = await client.chat.completions.create({ ...asked, messages });
    const said = first.choices[0].message;
    const [call] = said.tool_calls;
    assert.deepEqual(JSON.parse(call.function.arguments), { city: 'demo city' });
    const result = { role: 'tool', tool_call_id: call.id, content: 'sunny' };
    const second = await client.chat.completions.create({ ...asked, messages: [...messages, said, result] });
    assert.ok(second.choices[0].message.content.includes('sunny'));
  },

  'chat streams a tool call': async () => {
    const stream = client.chat.completions.stream({ model: 'gpt-4o', messages, tools: chatTools });
    const { choices } = await stream.finalChatCompletion();
    const [call] = choices[0].message.tool_calls;
    assert.equal(call.function.name, 'weather');
    assert.deepEqual(JSON.parse(call.function.arguments), { city: 'demo city' });
  },

  'embeddings are the same in either encoding': async () => {
    const asked = { model: 'text-embedding-3-small', input: ['one', 'two'] };
    const packed = await client.embeddings.create(asked);
    const floats = await client.embeddings.create({ ...asked, encoding_format: 'float' });
    assert.equal(packed.data[1].embedding.length, 1536);
    for (const [at, number] of packed.data[1].embedding.entries()) {
      assert.ok(Math.abs(number - floats.data[1].embedding[at]) < 1e-6);
    }
  },

  'a file goes up and comes back': async () => {
    const content = Buffer.alloc(256 * 1024, 'bär');
    const file = await client.files.create({ file: await toFile(content, 'bär.bin'), purpose: 'user_data' });
    assert.deepEqual([file.filename, file.bytes], ['bär.bin', content.length]);
    assert.ok((await every(client.files.list({ limit: 1 }))).some((one) => one.id === file.id));
    const back = await client.files.content(file.id);
    assert.ok(Buffer.from(await back.arrayBuffer()).equals(content));
    assert.ok((await client.files.delete(file.id)).deleted);
  },

  'an image is drawn': async () => {
    const drawn = await client.images.generate({ model: 'gpt-image-1', prompt: 'a bear' });
    assert.ok(decoded(drawn.data[0].b64_json).startsWith(png));
    const image = await toFile(Buffer.from(drawn.data[0].b64_json, 'base64'), 'bear.png', { type: 'image/png' });
    const edited = await client.images.edit({ model: 'gpt-image-1', prompt: 'a bear', image });
    assert.ok(decoded(edited.data[0].b64_json).startsWith(png));
  },

  'a recording is heard': async () => {
    const file = await toFile(Buffer.alloc(100_000), 'bear.wav');
    const { text } = await client.audio.transcriptions.create({ model: 'whisper-1', file });
    assert.ok(text.includes('bear.wav arrived, all 100000 bytes'));
  },

  'a transcription streams': async () => {
    const file = await toFile(Buffer.alloc(1), 'bear.wav');
    const asked = { model: 'gpt-4o-transcribe', file, stream: true };
    const events = await every(await client.audio.transcriptions.create(asked));
    const deltas = events.slice(0, -1).map((event) => event.delta);
    assert.equal(deltas.join(''), events.at(-1).text);
  },

  'speech is binary': async () => {
    const speech = await client.audio.speech.create({ model: 'tts-1', input: 'Hello', voice: 'alloy' });
    assert.equal(speech.headers.get('content-type'), 'audio/wav');
    assert.equal(Buffer.from(await speech.arrayBuffer()).toString('latin1', 0, 4), 'RIFF');
  },

  'models are listed': async () => {
    const [first] = await every(client.models.list());
    assert.equal((await client.models.retrieve(first.id)).id, first.id);
  },

  "an error of the upstream is the SDK's own": async () => {
    const kinds = {
      'error-400': OpenAI.BadRequestError,
      'error-401': OpenAI.AuthenticationError,
      'error-404': OpenAI.NotFoundError,
      unknown: OpenAI.NotFoundError,
      'error-429': OpenAI.RateLimitError,
      'error-500': OpenAI.InternalServerError,
      'error-503': OpenAI.InternalServerError,
    };
    for (const [model, kind] of Object.entries(kinds)) {
      for (const stream of [false, true]) {
        const error = await failure(client.responses.create({ model, input: 'Hello', stream }), kind);
        assert.ok(error.message.includes(model));
        assert.match(error.requestID, /^req_/);
      }
    }
  },

  'a rate limit comes with its headers': async () => {
    const asked = { model: 'error-429', messages };
    const { headers, code } = await failure(client.chat.completions.create(asked), OpenAI.RateLimitError);
    assert.deepEqual([headers.get('retry-after'), headers.get('x-ratelimit-remaining-requests')], ['1', '0']);
    assert.equal(code, 'rate_limit_exceeded');
  },

  'a wrong client key is an authentication error': async () => {
    const stranger = client.withOptions({ apiKey: `${apiKey}x` });
    const { status } = await failure(stranger.models.list(), OpenAI.AuthenticationError);
    assert.equal(status, 401);
  },

  'a realtime talk, the key in a header': () => talk(OpenAIRealtimeWS),

  'a realtime talk, the key in a subprotocol as in a browser': () => talk(OpenAIRealtimeWebSocket),

  'a stream can be read with fetch alone': async () => {
    const answer = await fetch(`${url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'api-key': apiKey, 'content-type': 'application/json' },
      body: JSON.stringify({ model: 'gpt-4o', messages, stream: true }),
    });
    assert.equal(answer.headers.get('content-type'), 'text/event-stream; charset=utf-8');
    const text = (await every(answer.body.pipeThrough(new TextDecoderStream()))).join('');
    const events = text.trimEnd().split('\n\n');
    assert.equal(events.pop(), 'data: [DONE]');
    const chunks = events.map((event) => JSON.parse(event.replace(/^data: /, '')));
    assert.ok(chunks.map((chunk) => chunk.choices[0].delta.content ?? '').join('').includes("Wie geht's, Bär?"));
  },
};

for (const [check, run] of Object.entries(checks)) {
  const error = await run().then(
    () => null,
    (error) => String(error?.stack ?? error),
  );
  console.log(JSON.stringify({ check, error }));
}
