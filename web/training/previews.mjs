// The pictures that were drawn during a training, and a slider to look back.
import { make } from '../shared/dom.mjs'
import { number } from '../shared/i18n.mjs'
import { time } from './format.mjs'

export class Previews {
  #t
  #address
  #isLatest = true // whoever looks at an older one goes on looking at it
  #pictures = make('div', { class: 'seqlora-pictures' })
  #which = make('span', { class: 'seqlora-number' })
  #cost = make('span', { class: 'seqlora-number' })
  #slider

  // `address(image)`: where a picture is. `onMove`: called when the user looks at another one.
  constructor(t, address, onMove) {
    this.#t = t
    this.#address = address
    this.#slider = /** @type {HTMLInputElement} */ (make('input', {
      type: 'range', min: 0, step: 1, 'aria-label': t('panel.previews'),
      oninput: () => {
        this.#isLatest = this.#slider.value === this.#slider.max
        onMove()
      }
    }))
    this.element = make('div', { class: 'seqlora-previews' }, this.#pictures, this.#slider,
      make('div', { class: 'seqlora-row' }, this.#which, this.#cost))
  }

  // Another training: back to the latest.
  reset() {
    this.#isLatest = true
  }

  // Answers the step that is looked back at, or null.
  draw({ previews, preview_seconds: total }) {
    this.element.hidden = !previews.length
    if (!previews.length) return null
    const isOne = previews.length < 2
    this.#slider.max = String(previews.length - 1)
    if (this.#isLatest) this.#slider.value = this.#slider.max
    const { step, seconds, pictures } = previews[this.#slider.valueAsNumber]
    this.#slider.hidden = isOne
    this.#which.textContent = this.#t('panel.preview', { step: number(step), time: time(seconds) })
    this.#cost.textContent = isOne ? '' : this.#t('panel.cost', { time: time(total) })
    this.#slider.setAttribute('aria-valuetext', this.#which.textContent ?? '')
    while (this.#pictures.children.length > pictures.length) this.#pictures.lastChild?.remove()
    pictures.forEach((picture, index) => this.#show(picture, index, number(step)))
    return this.#isLatest ? null : step
  }

  #show(picture, index, step) {
    const figure = this.#pictures.children[index] ?? this.#pictures.appendChild(
      make('figure', {}, make('img', { draggable: 'false' }), make('figcaption')))
    const image = /** @type {HTMLImageElement} */ (figure.children[0])
    const address = this.#address(picture.image)
    if (image.getAttribute('src') !== address) image.src = address
    image.alt = this.#t('panel.picture', { ...picture, step })
    image.title = picture.prompt
    figure.children[1].textContent = picture.concept
  }
}
