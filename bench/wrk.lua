-- Calls over many sessions with ids that are not in use, as prepared by bench/wrk.py: one request per file record.
-- Where a record has the mark, each request gets twelve hexadecimal digits of its own.
-- wrk [options] -s wrk.lua URL -- FILE MARK FIRST_NUMBER

local requests, current, unique = {}, 0, 0

local function cut(text, mark)
   local pieces, place = {}, 1
   local from, to = text:find(mark, place, true)
   while from do
      pieces[#pieces + 1] = text:sub(place, from - 1)
      place = to + 1
      from, to = text:find(mark, place, true)
   end
   pieces[#pieces + 1] = text:sub(place)
   return #pieces > 1 and pieces or text
end

function init(args)
   local file = assert(io.open(args[1], "rb"))
   local content = file:read("*a")
   file:close()
   unique = tonumber(args[3])
   local place = 1
   while place <= #content do
      local size = tonumber(content:sub(place, place + 7))
      requests[#requests + 1] = cut(content:sub(place + 8, place + 7 + size), args[2])
      place = place + 8 + size
   end
end

function request()
   current = current % #requests + 1
   local found = requests[current]
   if type(found) == "string" then
      return found
   end
   unique = unique + 1
   return table.concat(found, string.format("%012x", unique))
end

function done(summary, latency, _)
   local errors = summary.errors
   io.write(string.format(
      'bench {"requests": %d, "duration_us": %d, "connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d, '
         .. '"p50_us": %d, "p99_us": %d}\n',
      summary.requests, summary.duration, errors.connect, errors.read, errors.write, errors.status, errors.timeout,
      latency:percentile(50), latency:percentile(99)))
end
