// What the server offers: models, methods, profiles and artifacts; and the key that it wants.

import { useCallback, useEffect, useState } from "preact/hooks";
import { Refused, get, key } from "./api.js";

/**
 * `state` is "asking", "locked", "away" or "open"; `note` says why, in words.
 * `open(value)` tries a key, `forget()` drops it, `again()` asks once more.
 */
export function useServer() {
  const [server, setServer] = useState({ state: "asking", note: "" });

  const again = useCallback(async () => {
    setServer((old) => ({ ...old, state: "asking", note: "" }));
    try {
      setServer({ state: "open", note: "", ...(await offers()) });
    } catch (error) {
      setServer(problem(error));
    }
  }, []);

  useEffect(() => void again(), []);

  const open = (value) => {
    key.set(value);
    return again();
  };
  const forget = () => {
    key.forget();
    return again();
  };
  return { ...server, open, forget, again };
}

async function offers() {
  const routes = ["v1/models", "v1/interventions", "v1/profiles", "v1/artifacts"];
  const [models, methods, profiles, artifacts] = await Promise.all(routes.map(get));
  return {
    models: models.data,
    methods: methods.data,
    profiles: profiles.data,
    artifacts: artifacts.data ?? [],
  };
}

function problem(error) {
  if (error instanceof Refused && error.status === 401) {
    const note = key.get() ? "This key is not known." : "This server answers only with a key.";
    key.forget();
    return { state: "locked", note };
  }
  return { state: "away", note: error.message };
}
