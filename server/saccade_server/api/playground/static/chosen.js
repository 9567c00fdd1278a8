// The methods that the reader chose, in order, and what drawing on the picture does to them.

import { useRef, useState } from "preact/hooks";
import { get } from "./api.js";
import { LOOK_AT, turned, withBox } from "./look.js";
import { beginning } from "./methods.js";

/** The chosen methods, and what can be done to the list. */
export function useMethods() {
  const [chosen, setChosen] = useState([]);
  const count = useRef(0);
  const add = async (name, typed) => {
    const about = await get(`v1/interventions/${encodeURIComponent(name)}`);
    count.current += 1;
    const item = { id: count.current, about, typed: typed ?? beginning(about) };
    setChosen((list) => [...list, item]);
  };
  const change = (id, typed) =>
    setChosen((list) => list.map((item) => (item.id === id ? { ...item, typed } : item)));
  const move = (index, by) =>
    setChosen((list) => {
      const next = [...list];
      [next[index], next[index + by]] = [next[index + by], next[index]];
      return next;
    });
  const remove = (id) => setChosen((list) => list.filter((item) => item.id !== id));
  return [chosen, { add, change, move, remove }];
}

/** What drawing on the picture does to the list of methods: to the last `look_at`, or a new one. */
export function looking(methods, { add, change, remove }, picture) {
  const all = methods.filter(({ about }) => about.id === LOOK_AT);
  const typedOf = (id) => all.find((item) => item.id === id).typed;
  return {
    add: async (box, { apart = false } = {}) => {
      const last = all.at(-1);
      if (last && !apart) change(last.id, withBox(last.typed, null, box, picture));
      else await add(LOOK_AT, withBox({}, null, box, picture));
    },
    set: (id, place, box) => change(id, withBox(typedOf(id), place, box, picture)),
    drop: (id, place) => {
      const typed = withBox(typedOf(id), place, null, picture);
      if (typed.regions) change(id, typed);
      else remove(id);
    },
    turn: (away) => change(all.at(-1).id, turned(all.at(-1).typed, away)),
  };
}
