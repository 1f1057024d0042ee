// make('button', { class: 'x', onclick: act }, 'text', child): an element; false and null traits and children are left out.
export function make(tag, traits = {}, ...inside) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(traits)) {
    if (typeof value === 'function') element[name] = value
    else if (value !== false && value != null) element.setAttribute(name, value === true ? '' : value)
  }
  element.append(...inside.flat().filter((child) => child !== false && child != null))
  return element
}

// The host's icon fonts (PrimeIcons); never read out.
export function icon(name) {
  return make('i', { class: `pi pi-${name}`, 'aria-hidden': 'true' })
}
