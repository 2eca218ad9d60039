element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-sae]');
  if (!button) return;
  if (button.hasAttribute('aria-pressed')) {
    element.querySelectorAll('[aria-pressed=true]').forEach((other) => other.setAttribute('aria-pressed', 'false'));
    button.setAttribute('aria-pressed', 'true');
  }
  trigger('select', {...button.dataset});
});
