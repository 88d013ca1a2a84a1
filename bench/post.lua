-- SPDX-License-Identifier: Apache-2.0
-- wrk's script: POSTs of a given size to one model or to many in turn; the result as one line of JSON.
--   wrk -s post.lua URL -- BODY_BYTES MODELS

local function body(model, bytes)
  local before = '{"model":"' .. model .. '","messages":[{"role":"user","content":"'
  local after = '"}]}'
  return before .. string.rep("x", math.max(0, bytes - #before - #after)) .. after
end

function init(arguments)
  local bytes, models = tonumber(arguments[1]), tonumber(arguments[2])
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  wrk.body = body("bench", bytes)
  if models == 1 then return end -- without a request() of our own, wrk sends the same bytes without asking Lua
  local requests, next_one = {}, 0
  for number = 1, models do
    requests[number] = wrk.format(nil, nil, nil, body("bench-" .. number, bytes))
  end
  function request()
    next_one = next_one % models + 1
    return requests[next_one]
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %.6f, "refused": %d, "broken": %d, "bad_status": %d, "late": %d, "p50_us": %d, "p99_us": %d}\n',
    summary.requests, summary.duration / 1e6, errors.connect, errors.read + errors.write, errors.status, errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
