"use strict";
const audio = document.querySelector("audio");
const segments = [...document.querySelectorAll(".segment")];
const starts = segments.map((segment) => Number(segment.dataset.t));
let shown = [];

// The last place in ascending times that is not after `time`; -1: there is none.
function lastAt(times, time) {
  let low = 0;
  let high = times.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] <= time) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

function show() {
  const time = audio.currentTime;
  const segment = segments[lastAt(starts, time)];
  const found = [];
  if (segment && time < Number(segment.dataset.end)) {
    const words = [...segment.querySelectorAll("[data-t]")];
    const word = words[lastAt(words.map((each) => Number(each.dataset.t)), time)];
    found.push(segment, ...(word ? [word] : []));
  }
  const isNew = found.length > 0 && found[0] !== shown[0];
  for (const element of shown) element.classList.remove("now");
  for (const element of found) element.classList.add("now");
  shown = found;
  if (isNew && !audio.paused) segment.scrollIntoView({ block: "nearest" });
}

function follow() {
  show();
  if (!audio.paused) requestAnimationFrame(follow);
}

function seek(time) {
  audio.currentTime = time;
  show();
}

audio.addEventListener("play", follow);
audio.addEventListener("seeked", show);
document.querySelector("source:last-of-type").addEventListener("error", () => {
  document.body.classList.add("missing");
  document.querySelector(".choose span").textContent =
    "The recording was not found beside this page: choose it";
});
document.querySelector("input").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (!file) return;
  audio.src = URL.createObjectURL(file);
  document.body.classList.remove("missing");
  document.querySelector(".choose span").textContent = file.name;
});
document.querySelector("main").addEventListener("click", (event) => {
  const element = event.target.closest("[data-t]");
  if (!element || String(getSelection())) return;
  seek(Number(element.dataset.t));
  if (audio.readyState > 0) audio.play().catch(() => {});
});
const linked = /^#t=(\d+(?:\.\d+)?)$/.exec(location.hash);
if (linked) seek(Number(linked[1]));
