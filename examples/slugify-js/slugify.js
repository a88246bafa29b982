const WORDS = { '&': 'and', '@': 'at', '%': 'percent', '+': 'plus' };

/** Symbols that are read aloud become words: "Q&A" is "Q and A". */
export function spellSymbols(text) {
  let spelled = text;
  for (const [symbol, word] of Object.entries(WORDS)) {
    spelled = spelled.replace(symbol, ` ${word} `);
  }
  return spelled;
}

/** Letters without their accents: "Crème" is "Creme". */
export function withoutAccents(text) {
  return text.normalize('NFD').replace(/[\u0300-\u036f]/g, '');
}

/** A title as lower-case words joined by dashes, cut at a word's end after at most `maxLength` characters. */
export function slugify(title, maxLength = 60) {
  const slug = withoutAccents(spellSymbols(title))
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-')
    .replace(/^-|-$/g, '');
  if (slug.length <= maxLength) {
    return slug;
  }
  const cut = slug.lastIndexOf('-', maxLength);
  return slug.slice(0, cut > 0 ? cut : maxLength);
}

/** The slug, with the first free number behind it when it is taken. */
export function uniqueSlug(title, taken) {
  const slug = slugify(title);
  let candidate = slug;
  for (let number = 2; taken.has(candidate); number += 1) {
    candidate = `${slug}-${number}`;
  }
  return candidate;
}
