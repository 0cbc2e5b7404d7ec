// The line protocol of the client drivers: one JSON command a line in, one JSON answer a line out, in any order.
import { createInterface } from "node:readline";

const held = new Map();

/** Wrap fetch so that every session ID of a successful answer is remembered. */
export function watchingFetch(seen) {
  return async (url, init) => {
    const answer = await fetch(url, init);
    const id = answer.headers.get("mcp-session-id");
    if (id && answer.ok) seen.add(id);
    return answer;
  };
}

/** Listen in on what a connected transport hands to its client: the client keeps some of it to itself. */
export function listenIn(transport, heard) {
  const take = transport.onmessage;
  transport.onmessage = (message, extra) => {
    heard.push(message);
    take(message, extra);
  };
}

const text = (result) => (result.content ?? []).map((part) => part.text ?? "").join("");

const commands = {
  async connect({ name, url, follows, open }) {
    const seen = new Set();
    const listed = [];
    const onChanged = (_error, tools) => listed.splice(0, listed.length, ...(tools ?? []).map((tool) => tool.name));
    const connection = await open(url, watchingFetch(seen), follows ? { listChanged: { tools: { onChanged } } } : {});
    held.set(name, { ...connection, seen, listed });
    return { kind: "result", text: "" };
  },
  async tools({ name, timeout }) {
    const listed = await held.get(name).client.listTools(undefined, { timeout: timeout * 1000 });
    return { kind: "result", text: listed.tools.map((tool) => tool.name).join(" ") };
  },
  async listed({ name }) {
    return { kind: "result", text: held.get(name).listed.join(" ") };
  },
  async call({ name, tool, arguments: args, timeout }) {
    const result = await held.get(name).callTool({ name: tool, arguments: args }, { timeout: timeout * 1000 });
    return { kind: result.isError ? "tool_error" : "result", text: text(result) };
  },
  async subscribe({ name, uri }) {
    await held.get(name).client.subscribeResource({ uri });
    return { kind: "result", text: "" };
  },
  async level({ name, level }) {
    await held.get(name).client.setLoggingLevel(level);
    return { kind: "result", text: "" };
  },
  async heard({ name }) {
    return { kind: "result", text: JSON.stringify(held.get(name).heard) };
  },
  async answer({ name }) {
    held.get(name).waiting.shift()?.();
    return { kind: "result", text: "" };
  },
  async close({ name }) {
    const { client, transport } = held.get(name);
    held.delete(name);
    await transport.terminateSession?.().catch(() => {});
    await client.close();
    return { kind: "result", text: "" };
  },
};

async function outcome(command) {
  const started = performance.now();
  const bound = new Promise((_, reject) =>
    setTimeout(() => reject(new Error("TIMED OUT")), command.timeout * 1000).unref(),
  );
  let answer;
  try {
    answer = await Promise.race([commands[command.op](command), bound]);
  } catch (error) {
    const timedOut = /TIMED OUT|Request timed out/i.test(error.message);
    answer = { kind: timedOut ? "timeout" : "error", text: `${error.name}: ${error.message}` };
  }
  const connection = held.get(command.name);
  return {
    ...answer,
    id: command.id,
    seconds: (performance.now() - started) / 1000,
    session_id: connection?.transport.sessionId ?? null,
    seen_ids: [...(connection?.seen ?? [])],
  };
}

/** Serve commands until the end of the input; `open` makes one connection, with further options of the client. */
export function serve(open) {
  const input = createInterface({ input: process.stdin });
  input.on("line", async (line) => {
    const answer = await outcome({ ...JSON.parse(line), open });
    process.stdout.write(JSON.stringify(answer) + "\n");
  });
  input.on("close", () => process.exit(0));
  process.on("unhandledRejection", (error) => console.error("unhandled:", error));
}
