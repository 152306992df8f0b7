-- Drives wrk: every thread holds one connection and sends the images in turn, starting with a different one.
-- LOAD_IMAGES: the files, one per line. LOAD_PATH: the request's path. At the end it prints one line per response:
-- end of the response (µs), latency (µs), status, bytes, and the answer's decode, queue, inference and encode (ms).

local ffi = require("ffi")
ffi.cdef([[
typedef struct { long s; long ns; } load_time;
int clock_gettime(int clock, load_time *t);
]])

local MONOTONIC = 1
local TAIL = 600 -- timing_ms is the last field of an answer; the map before it may have megabytes

local threads = {}

function setup(thread)
  thread:set("offset", #threads)
  table.insert(threads, thread)
end

function init()
  moment = ffi.new("load_time")
  requests, lines = {}, {}
  for path in os.getenv("LOAD_IMAGES"):gmatch("[^\n]+") do
    local file = assert(io.open(path, "rb"))
    local head = { ["Content-Type"] = "application/octet-stream" }
    table.insert(requests, wrk.format("POST", os.getenv("LOAD_PATH"), head, file:read("*a")))
    file:close()
  end
  turn = offset
end

function now()
  ffi.C.clock_gettime(MONOTONIC, moment)
  return tonumber(moment.s) * 1e6 + math.floor(tonumber(moment.ns) / 1e3)
end

function request()
  turn = turn + 1
  sent = now()
  return requests[(turn - 1) % #requests + 1]
end

function response(status, headers, body)
  local ended, tail, parts = now(), body:sub(-TAIL), {}
  for _, name in ipairs({ "decode", "queue", "inference", "encode" }) do
    table.insert(parts, tail:match('"' .. name .. '":([%d%.e%-]+)') or "nan")
  end
  local line = "%.0f %.0f %d %d %s\n"
  table.insert(lines, line:format(ended, ended - sent, status, #body, table.concat(parts, " ")))
end

function done()
  for _, thread in ipairs(threads) do
    for _, line in ipairs(thread:get("lines")) do
      io.write(line)
    end
  end
end
