"""How the web explorer looks and what its page does in the browser: theme, style, two short scripts, words of help."""

from __future__ import annotations

import gradio as gr

HELP = {
    "sentence": "Type a sentence and read it; then choose a token to see its features, or a feature to read its page.",
    "feature": "One feature's page, with your last sentence above it; its links lead to the features near to it.",
    "search": "Find features by number, by category, by a token, or by texts of your own that share a concept.",
    "steer": "The model goes on from a prompt three times on the same random draws: as it is, with a feature changed, "
             "and with a control of the same kind.",
    "compare": "What each SAE keeps of the same sentence, and which of its features are strongest there.",
}  # fmt: skip

# A click (or Enter) on a button with data tells the server which token or feature was meant.
PICK = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-sae]');
  if (!button) return;
  if (button.hasAttribute('aria-pressed')) {
    element.querySelectorAll('[aria-pressed=true]').forEach((other) => other.setAttribute('aria-pressed', 'false'));
    button.setAttribute('aria-pressed', 'true');
  }
  trigger('select', {...button.dataset});
});
"""

# A page in a frame gets the height that it needs; its links to features open here, its own anchors scroll to.
FOLLOW = """
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
"""

CSS = """
.gradio-container{--soft:#5a6169;max-width:1120px!important;width:100%;margin:0 auto}
.dark .gradio-container,.gradio-container.dark,.dark{--soft:#a5adb6}
.gradio-container h1{font-size:24px;margin:0}.gradio-container h3{font-size:15px;margin:12px 0 4px}
.gradio-container .html-container{padding:0!important}
.prism-head p,.prism-note,.prism-help,.prism-table+p,.prism-three p{color:var(--soft)!important;font-size:13px;
 margin:4px 0}
.prism-help{font-size:14px}
.prism-problem{border-left:4px solid #D55E00;padding:6px 12px;margin:6px 0;overflow-wrap:anywhere}
.prism-text{line-height:2.1;margin:4px 0}
.prism-text button,.prism-pick{font:14px ui-monospace,Menlo,Consolas,monospace;color:inherit;cursor:pointer;
 border:1px solid var(--border-color-primary);border-radius:4px;padding:2px 5px;min-height:28px;background:none}
.prism-text button{margin:0 2px 2px 0;overflow-wrap:anywhere;text-align:left}
.prism-text button[aria-pressed=true]{outline:2px solid #0072B2;outline-offset:1px}
.prism-pick{text-decoration:underline;text-underline-offset:2px;min-width:48px}
nav .prism-pick{margin:0 4px 4px 0}
:is(.prism-text button,.prism-pick):focus-visible{outline:3px solid #0072B2;outline-offset:2px}
.dark :is(.prism-text button,.prism-pick):focus-visible,.dark .prism-text button[aria-pressed=true]{
 outline-color:#56B4E9}
.prism-table{overflow-x:auto;padding:1px}
.prism-table table{border-collapse:collapse;border:0!important;font-size:14px;width:100%;margin:0}
.prism-table :is(tr,th,td){border:0!important}
.prism-table :is(th,td){text-align:left;padding:4px 14px 4px 0!important;vertical-align:baseline;
 border-bottom:1px solid var(--border-color-primary)!important}
.prism-table th{font-weight:600;white-space:nowrap}.prism-table td.number{font-variant-numeric:tabular-nums}
.prism-table td.words{overflow-wrap:anywhere;min-width:80px}
.prism-three{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(260px,100%),1fr));gap:4px 24px}
.prism-own{border-bottom:1px solid var(--border-color-primary);margin-bottom:6px}
#rare{border:0!important;padding:0!important;background:none!important;box-shadow:none!important}
#page iframe,#pinned iframe{width:100%;height:1200px;border:0;display:block}
.prism-row{align-items:end}.prism-go{align-self:flex-start;min-width:180px!important;width:auto!important}
@media(max-width:480px){.prism-table table{font-size:13px}.prism-table th{white-space:normal}
 .prism-table :is(th,td){padding-right:8px!important}
 .prism-go{width:100%!important}}
"""


def theme() -> gr.themes.Base:
    """Gradio's plain theme in the fonts of the reader's system: none is fetched."""
    return gr.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
        primary_hue="blue", text_size="md",
    )  # fmt: skip
