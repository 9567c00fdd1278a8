// The AI SDK with both of its providers for servers of this kind: objects, arrays, choices, tools.
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateObject, generateText, Output, stepCountIs, streamObject, streamText, tool } from 'ai';
import assert from 'node:assert/strict';
import { z } from 'zod';

const baseURL = `${process.env.SACCADE_URL}/v1`;
const compatible = createOpenAICompatible({
  name: 'saccade',
  baseURL,
  apiKey: 'none',
  includeUsage: true,
  supportsStructuredOutputs: true,
})('tiny');
const plain = createOpenAICompatible({ name: 'saccade', baseURL, apiKey: 'none' })('tiny');
const openai = createOpenAI({ baseURL, apiKey: 'none' }).chat('tiny');

const Person = z.object({
  name: z.string().describe('without a title'),
  age: z.number().int(),
  towns: z.array(z.string()),
});
const prompt = 'Tell me of Ann, in JSON.';
const get_weather = tool({
  description: 'Look the weather of a city up.',
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `22 degrees in ${city}`,
});
const tools = { get_weather };
const question = 'How warm is it in Paris?';
const several = stepCountIs(4);

async function objectFrom(model) {
  const { output, usage } = await generateText({ model, prompt, output: Output.object({ schema: Person }) });
  Person.parse(output);
  assert.ok(usage.outputTokens > 0);
}

async function streamFrom(model) {
  const { partialOutputStream, output } = streamText({ model, prompt, output: Output.object({ schema: Person }) });
  let states = 0;
  for await (const _ of partialOutputStream) states += 1;
  assert.ok(states > 2);
  Person.parse(await output);
}

async function callFrom(model) {
  const { toolCalls, finishReason } = await generateText({
    model,
    prompt: question,
    tools,
    toolChoice: 'required',
  });
  assert.equal(finishReason, 'tool-calls');
  assert.equal(toolCalls[0].toolName, 'get_weather');
  assert.equal(typeof toolCalls[0].input.city, 'string');
}

async function conversationWith(model) {
  const first = await generateText({ model, prompt: question, tools, toolChoice: { type: 'tool', toolName: 'get_weather' } });
  const second = await generateText({
    model,
    tools,
    messages: [{ role: 'user', content: question }, ...first.response.messages],
  });
  assert.equal(second.finishReason, 'stop');
  assert.ok(second.text);
}

const cases = {
  object: () => objectFrom(compatible),
  object_by_openai: () => objectFrom(openai),
  object_streamed: () => streamFrom(compatible),
  object_streamed_by_openai: () => streamFrom(openai),

  async object_by_the_older_call() {
    const { object } = await generateObject({ model: compatible, schema: Person, prompt });
    Person.parse(object);
  },

  async object_streamed_by_the_older_call() {
    const { partialObjectStream, object } = streamObject({ model: compatible, schema: Person, prompt });
    let states = 0;
    for await (const _ of partialObjectStream) states += 1;
    assert.ok(states > 2);
    Person.parse(await object);
  },

  async object_of_any_names() {
    const { output } = await generateText({ model: plain, prompt, output: Output.json() });
    assert.equal(typeof output, 'object');
  },

  async array() {
    const element = z.object({ title: z.string() });
    const { output } = await generateText({ model: compatible, prompt, output: Output.array({ element }) });
    z.array(element).parse(output);
  },

  async choice() {
    const options = ['sunny', 'rainy'];
    const { output } = await generateText({ model: compatible, prompt, output: Output.choice({ options }) });
    assert.ok(options.includes(output));
  },

  call: () => callFrom(compatible),
  call_by_openai: () => callFrom(openai),
  conversation: () => conversationWith(compatible),
  conversation_by_openai: () => conversationWith(openai),

  async steps() {
    const { text, steps } = await generateText({ model: compatible, prompt: question, tools, stopWhen: several });
    assert.ok(text || steps.length === 4);
  },

  async call_streamed() {
    const { fullStream } = streamText({ model: compatible, prompt: question, tools, toolChoice: 'required' });
    const seen = [];
    let pieces = '';
    for await (const part of fullStream) {
      seen.push(part.type);
      if (part.type === 'error') throw part.error;
      if (part.type === 'tool-input-delta') pieces += part.delta;
    }
    assert.equal(typeof JSON.parse(pieces).city, 'string');
    assert.ok(seen.includes('tool-call') && seen.includes('tool-result'));
  },

  async text_streamed() {
    const { textStream, usage } = streamText({ model: compatible, prompt: question });
    let text = '';
    for await (const piece of textStream) text += piece;
    assert.ok(text);
    assert.ok((await usage).outputTokens > 0);
  },
};

for (const [name, run] of Object.entries(cases)) {
  let fault = null;
  try {
    await run();
  } catch (error) {
    fault = `${error.stack}\n${error.responseBody ?? error.text ?? ''}`;
  }
  console.log(JSON.stringify({ case: name, fault }));
}
