// Boxes on the picture and the entries of `look_at` that they stand in, which are all there is of them.

export const LOOK_AT = "look_at";

/** Where a region begins that is not drawn. */
export const MIDDLE = [0.3, 0.3, 0.7, 0.7];

const SMALL = 200; // pixels, from which on whole ones are fine enough
const STRENGTH = 2;

/** The regions of a form, or [] while its JSON is none. */
function regionsOf(typed) {
  try {
    const regions = JSON.parse(typed.regions || "[]");
    return Array.isArray(regions) ? regions : [];
  } catch {
    return [];
  }
}

function inPixels([left, top, right, bottom], { width, height }) {
  const round = (value, side) => (side < SMALL ? Math.round(value * side * 10) / 10 : Math.round(value * side));
  return [round(left, width), round(top, height), round(right, width), round(bottom, height)];
}

const isBox = ({ box }) => Array.isArray(box) && box.length === 4 && box.every(Number.isFinite);

function inFractions([left, top, right, bottom], { width, height }) {
  return [left / width, top / height, right / width, bottom / height].map((side) => Math.min(1, Math.max(0, side)));
}

/** The boxes of all `look_at` forms: {id, place, box}, as fractions of the picture's sides. */
export function boxesOf(methods, picture) {
  return methods
    .filter(({ about }) => about.id === LOOK_AT)
    .flatMap(({ id, typed }) => regionsOf(typed)
      .map((region, place) => ({ id, place, region }))
      .filter(({ region }) => isBox(region) && !region.image)
      .map(({ place, region }) => ({ id, place, box: inFractions(region.box, picture), away: isAway(typed) })));
}

/** A form with one more box, or with another one at a place; null takes it away. */
export function withBox(typed, place, box, picture) {
  const regions = regionsOf(typed);
  const region = box && { ...regions[place], box: inPixels(box, picture) };
  regions.splice(place ?? regions.length, place === null ? 0 : 1, ...(region ? [region] : []));
  return { ...typed, regions: regions.length ? JSON.stringify(regions) : "" };
}

const strengthOf = ({ strength }) => (strength === undefined || strength === "" ? STRENGTH : strength);

/** Whether a form makes the model look away. */
export function isAway(typed) {
  const strength = strengthOf(typed);
  return strength === "suppress" || Number(strength) < 0;
}

/** A form whose strength is as large as before, there or away. */
export function turned(typed, away) {
  const size = Math.abs(Number(strengthOf(typed))) || STRENGTH;
  return { ...typed, strength: String(away ? -size : size) };
}
