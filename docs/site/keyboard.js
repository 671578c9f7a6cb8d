// Tables that are wider than the screen scroll with the arrow keys, in every browser.
const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute('tabindex');
  }
});

addEventListener('load', () => {
  for (const table of document.querySelectorAll('.md-typeset__scrollwrap')) resized.observe(table);
  // The copy button of each code block is in a <nav>, without a name; dozens of them hide the page's landmarks.
  for (const buttons of document.querySelectorAll('.md-code__nav')) buttons.setAttribute('role', 'none');
});
