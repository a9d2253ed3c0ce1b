// OpenAI's own client: node transcribe.mjs BASE_URL FILE OPTIONS; prints what it was answered.
import { createReadStream } from "node:fs";
import OpenAI from "openai";

const [baseURL, path, options] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none is needed", maxRetries: 0 });
const file = createReadStream(path);
const { data, response } = await client.audio.transcriptions
  .create({ file, ...JSON.parse(options) })
  .withResponse();
const headers = Object.fromEntries(response.headers);
const events = [];
if (data[Symbol.asyncIterator]) for await (const event of data) events.push(event);
console.log(JSON.stringify({ data: events.length ? events : data, headers }));
