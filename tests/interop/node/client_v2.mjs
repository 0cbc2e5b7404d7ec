// Driver of the TypeScript SDK's 2.x client, which speaks the handshake revisions unless told otherwise.
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { listenIn, serve } from "./lines.mjs";

serve(async (url, fetch, options) => {
  const client = new Client({ name: "interop-typescript-2", version: "1.0.0" }, options);
  const transport = new StreamableHTTPClientTransport(new URL(url), { fetch });
  await client.connect(transport);
  const heard = [];
  listenIn(transport, heard);
  return { heard, client, transport, callTool: (params, options) => client.callTool(params, options) };
});
