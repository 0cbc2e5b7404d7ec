// Driver of the TypeScript SDK's 1.x client.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { serve } from "./lines.mjs";

serve(async (url, fetch) => {
  const client = new Client({ name: "interop-typescript-1", version: "1.0.0" });
  const transport = new StreamableHTTPClientTransport(new URL(url), { fetch });
  await client.connect(transport);
  return { client, transport, callTool: (params, options) => client.callTool(params, undefined, options) };
});
