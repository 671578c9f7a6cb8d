'use strict';
document.documentElement.classList.remove('still');

for (const figure of document.querySelectorAll('.comparison')) {
  const stage = figure.querySelector('.stage');
  const slider = stage.querySelector('input');
  const names = [...stage.querySelectorAll('.name')].map((name) => name.textContent);
  const swap = figure.querySelector('.swap');

  const show = () => {
    const share = Math.round(slider.value);
    const other = stage.classList.contains('swapped') ? names[2] : names[1];
    stage.style.setProperty('--at', `${slider.value}%`);
    slider.setAttribute('aria-valuetext', `${share} % ${names[0]}, ${100 - share} % ${other}`);
  };
  slider.addEventListener('input', show);
  slider.addEventListener('keydown', (event) => {
    // The slider's own steps are for a mouse, too small for a key.
    const way = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (!way || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    slider.value = Number(slider.value) + way * (event.shiftKey ? 10 : 2);
    show();
  });
  swap?.addEventListener('click', () => {
    swap.setAttribute('aria-pressed', String(stage.classList.toggle('swapped')));
    show();
  });
  figure.querySelector('.enlarge').addEventListener('click', () => enlarge(figure, stage));
  show();
}

function enlarge(figure, stage) {
  const dialog = document.querySelector('dialog');
  const frame = stage.parentElement;
  frame.style.minHeight = `${frame.offsetHeight}px`;
  dialog.querySelector('.place').style.cssText = frame.style.cssText.replace(/min-height[^;]*;?/, '');
  dialog.querySelector('.place').append(stage);
  dialog.showModal();
  const image = stage.querySelector('img');
  const zoom = image.getBoundingClientRect().width / image.naturalWidth;
  for (const picture of stage.querySelectorAll('.picture')) picture.classList.toggle('pixels', zoom >= 2);
  stage.querySelector('input').focus();
  dialog.addEventListener('close', () => {
    frame.append(stage);
    frame.style.minHeight = '';
    for (const picture of stage.querySelectorAll('.picture')) picture.classList.remove('pixels');
    figure.querySelector('.enlarge').focus();
  }, { once: true });
}

for (const table of document.querySelectorAll('table')) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener('click', () => {
    const next = { none: 'ascending', ascending: 'descending', descending: 'none' }[head.ariaSort];
    for (const other of heads) other.ariaSort = 'none';
    head.ariaSort = next;
    const sign = next === 'descending' ? -1 : 1;
    const sorted = next === 'none' ? original : original.toSorted((a, b) => {
      const [x, y] = [a.cells[column], b.cells[column]];
      const [unknownX, unknownY] = [x.textContent === '–', y.textContent === '–'];
      if (unknownX || unknownY) return unknownX - unknownY; // unknown values are last in both directions
      if (x.dataset.value && y.dataset.value) {
        const [p, q] = [number(x), number(y)];
        return p === q ? 0 : sign * (p < q ? -1 : 1);
      }
      return sign * x.textContent.localeCompare(y.textContent, 'en', { numeric: true });
    });
    body.append(...sorted);
  }));
}

function number(cell) {
  const text = cell.dataset.value;
  return text.endsWith('inf') ? (text.startsWith('-') ? -Infinity : Infinity) : Number(text);
}

const links = new Map([...document.querySelectorAll('nav a')].map((link) => [link.hash.slice(1), link]));
if (links.size) {
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      for (const [id, link] of links) {
        if (id === target.id) link.setAttribute('aria-current', 'true');
        else link.removeAttribute('aria-current');
      }
    }
  }, { rootMargin: '0px 0px -70% 0px' });
  for (const id of links.keys()) seen.observe(document.getElementById(id));
  if (matchMedia('(max-width: 40rem)').matches) document.querySelector('nav details').open = false;
}
