// Preloaded into servers that would listen on every interface: a port alone means loopback here.
import { Server } from "node:net";

const listen = Server.prototype.listen;
Server.prototype.listen = function (port, ...rest) {
  const portAlone = typeof port !== "object" && (rest.length === 0 || typeof rest[0] === "function");
  return portAlone ? listen.call(this, Number(port), "127.0.0.1", ...rest) : listen.call(this, port, ...rest);
};
