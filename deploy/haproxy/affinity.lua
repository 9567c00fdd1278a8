-- The head of a conversation, for requests that came without X-Saccade-Affinity: the bytes of
-- "messages" up to the end of the first user's, or the beginning of "prompt". All turns of a
-- conversation that one client writes begin with the same bytes there. It is no JSON parser: what
-- it cannot follow has no head, and the request goes to any replica.

local HEAD_BYTES = 8192 -- of the body, waited for by haproxy.cfg; more need not have come yet
local PROMPT_BYTES = 256

-- The position behind the value at i; nil where the body breaks off inside it.
local function behind(s, i)
  local c = s:sub(i, i)
  if c == '"' then
    repeat
      i = s:find('["\\]', i + 1)
      if i and s:sub(i, i) == "\\" then
        i = i + 1
      elseif i then
        return i + 1
      end
    until not i
    return nil
  elseif c == "{" or c == "[" then
    local depth = 0
    repeat
      i = s:find('[%[%]{}"]', i)
      local found = i and s:sub(i, i)
      if found == '"' then
        i = behind(s, i)
      elseif found then
        depth = depth + ((found == "{" or found == "[") and 1 or -1)
        i = i + 1
      end
    until not i or depth == 0
    return i
  end
  return s:find("[,%]}%s]", i)
end

-- Calls visit(key, position of the value) for each member of the object at i until it returns true.
local function members(s, i, visit)
  i = s:match('^{%s*()"', i)
  while i do
    local colon = behind(s, i)
    local value = colon and s:match("^%s*:%s*()%S", colon)
    if not value or visit(s:sub(i + 1, colon - 2), value) then
      return
    end
    i = behind(s, value)
    i = i and s:match('^%s*,%s*()"', i)
  end
end

local function is_user(s, message)
  local user = false
  members(s, message, function(key, value)
    user = key == "role" and s:find('^"user"', value) ~= nil
    return user
  end)
  return user
end

-- The end of the first user's message in the list at i, or of the list; of what there is at most.
local function last_of_head(s, i)
  local message = s:match("^%[%s*(){", i)
  while message do
    local stop = behind(s, message)
    if not stop then
      break
    end
    local following = s:match("^%s*,%s*(){", stop)
    if not following or is_user(s, message) then
      return stop - 1
    end
    message = following
  end
  return #s
end

local function head(s)
  local found
  local start = s:match("^%s*(){")
  if start then
    members(s, start, function(key, value)
      if key == "messages" then
        found = s:sub(value, math.min(last_of_head(s, value), HEAD_BYTES))
      elseif key == "prompt" then
        found = s:sub(value, math.min((behind(s, value) or #s) - 1, value + PROMPT_BYTES))
      end
      return found ~= nil
    end)
  end
  return found
end

core.register_action("affinity", { "http-req" }, function(txn)
  local found = head(txn.f:req_body() or "")
  if found then
    txn:set_var("txn.head", found)
  end
end)
