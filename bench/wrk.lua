-- Calls over many sessions with ids that are not in use, as prepared by bench/wrk.py: one request per file record.
-- wrk [options] -s wrk.lua URL -- FILE

local requests, current = {}, 0

function init(args)
   local file = assert(io.open(args[1], "rb"))
   local content = file:read("*a")
   file:close()
   local place = 1
   while place <= #content do
      local size = tonumber(content:sub(place, place + 7))
      requests[#requests + 1] = content:sub(place + 8, place + 7 + size)
      place = place + 8 + size
   end
end

function request()
   current = current % #requests + 1
   return requests[current]
end

function done(summary, latency, _)
   local errors = summary.errors
   io.write(string.format(
      'bench {"requests": %d, "duration_us": %d, "connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d, '
         .. '"p50_us": %d, "p99_us": %d}\n',
      summary.requests, summary.duration, errors.connect, errors.read, errors.write, errors.status, errors.timeout,
      latency:percentile(50), latency:percentile(99)))
end
