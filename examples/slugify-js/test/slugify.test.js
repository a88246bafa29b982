import assert from 'node:assert/strict';
import { test } from 'node:test';

import { slugify, uniqueSlug } from '../slugify.js';

test('words are joined by dashes', () => {
  assert.equal(slugify('Hello, wide World!'), 'hello-wide-world');
});

test('accents are dropped', () => {
  assert.equal(slugify('Crème Brûlée'), 'creme-brulee');
});

test('a symbol becomes a word', () => {
  assert.equal(slugify('Questions & Answers'), 'questions-and-answers');
});

test('every symbol becomes a word', () => {
  assert.equal(slugify('Salt & Pepper & Oil'), 'salt-and-pepper-and-oil');
});

test('symbols without spaces become words of their own', () => {
  assert.equal(slugify('R&D + Q&A'), 'r-and-d-plus-q-and-a');
});

test('long titles are cut at the end of a word', () => {
  assert.equal(slugify('one two three four', 10), 'one-two');
});

test('a taken slug gets a number', () => {
  assert.equal(uniqueSlug('News', new Set(['news', 'news-2'])), 'news-3');
});
