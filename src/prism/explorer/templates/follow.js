element.addEventListener('load', (event) => {
  const frame = event.target, page = frame.contentDocument;
  if (!page || !page.body) return;
  const fit = () => { frame.style.height = page.documentElement.scrollHeight + 'px'; };
  fit();
  new ResizeObserver(fit).observe(page.body);
  page.addEventListener('click', (click) => {
    const link = click.target.closest('a[href]');
    const to = link && new URL(link.href, location.href);
    if (!link || to.origin !== location.origin) return;
    click.preventDefault();
    if (link.getAttribute('href').startsWith('#')) page.querySelector(link.getAttribute('href'))?.scrollIntoView();
    else trigger('select', Object.fromEntries(to.searchParams));
  });
}, true);
