-- Posts one prepared body after the other; `done` prints what was measured as one line of JSON.
-- wrk -s wrk.lua URL -- FILE OFFSET: a body per line, the first to be sent is that after OFFSET lines.
-- wrk -s wrk.lua URL: nothing is posted, the URL is got.

local requests, position = {}, 0

function init(arguments)
   if arguments[1] == nil then
      requests[1] = wrk.format("GET")
      return
   end
   local headers = {["Content-Type"] = "application/json"}
   for body in io.lines(arguments[1]) do
      requests[#requests + 1] = wrk.format("POST", nil, headers, body)
   end
   position = tonumber(arguments[2]) - 1 -- wrk takes one request beforehand, to check it
end

function request()
   position = position % #requests + 1
   return requests[position]
end

-- Times of wrk are in microseconds. `status` counts answers that are not 2xx or 3xx.
function done(summary, latency)
   local errors = summary.errors
   io.write(string.format(
      'measured {"seconds": %.6f, "requests": %d, "p50_ms": %.4f, "p99_ms": %.4f, "max_ms": %.4f, ' ..
      '"errors": {"connect": %d, "read": %d, "write": %d, "timeout": %d, "status": %d}}\n',
      summary.duration / 1e6, summary.requests,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3,
      errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
