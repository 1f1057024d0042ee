// One picture of the list: how it looks, what becomes of it, its caption.
import { icon, make } from '../shared/dom.mjs'
import { number } from '../shared/i18n.mjs'

export class Row {
  // `about`: what the server tells of it, or undefined; `problem`: why it is not read; `twin`: { how, file } of one like it that
  // comes before it, or null. `act`: { caption(text), remove() }.
  /** @param {any} about */
  constructor(t, file, about, problem, twin, act) {
    this.caption = /** @type {HTMLInputElement} */ (make('input', {
      class: 'seqlora-caption', placeholder: t('pictures.caption'), 'aria-label': t('pictures.captionOf', { file }),
      onchange: () => act.caption(this.caption.value.trim())
    }))
    this.remover = /** @type {HTMLButtonElement} */ (make('button', {
      type: 'button', class: 'seqlora-button seqlora-take-off', title: t('pictures.remove'),
      'aria-label': t('pictures.removeOf', { file }), onclick: act.remove
    }, icon('times')))
    const remarks = [...about ? told(t, about) : [], ...twin ? [t(`pictures.${twin.how === 'the same as' ? 'same' : 'alike'}`, twin)] : []]
    this.isRemarkable = Boolean(problem || remarks.length)
    this.element = make('li', { class: 'seqlora-row-picture' },
      about ? thumbnail(t, about) : make('span', { class: 'seqlora-thumbnail' }, icon('exclamation-triangle')),
      make('div', {},
        make('div', { class: 'seqlora-row-head' }, make('span', { class: 'seqlora-file', title: file }, file), this.remover),
        make('p', { class: 'seqlora-muted' }, about && fate(t, about)),
        !problem && this.caption,
        problem && make('p', { class: 'seqlora-problem' }, problem),
        remarks.map((remark) => make('p', { class: 'seqlora-remark' }, icon('info-circle'), remark))))
  }
}

// Its whole picture: what is cropped lies in shadow, what is transparent on squares.
function thumbnail(t, { thumbnail: src, kept: [across, up], transparent, file }) {
  const image = make('img', { src, alt: t('pictures.picture', { file }), draggable: 'false' })
  const frame = make('span', { class: `seqlora-frame${transparent ? ' seqlora-transparent' : ''}` }, image)
  if (across < 1 || up < 1) {
    const rest = make('span', { class: 'seqlora-kept' })
    rest.style.inset = `${50 * (1 - up)}% ${50 * (1 - across)}%`
    frame.append(rest)
  }
  return make('span', { class: 'seqlora-thumbnail' }, frame)
}

// "1024 × 768 → 72 × 56, 4 % cropped".
function fate(t, { size, becomes, kept: [across, up] }) {
  const pixels = ([width, height]) => t('pictures.size', { width: number(width), height: number(height) })
  const isSame = size[0] === becomes[0] && size[1] === becomes[1]
  const lost = 1 - across * up
  return [pixels(size), !isSame && ` \u2192 ${pixels(becomes)}`,
    lost >= 0.005 && `, ${t('pictures.cropped', { share: number(lost, { style: 'percent', maximumFractionDigits: 0 }) })}`]
    .filter(Boolean).join('')
}

// The core's own remarks, but for what is said above in numbers or in the user's language.
function told(t, { size, becomes, kept: [across, up], transparent }) {
  return [
    transparent && t('pictures.transparent'),
    size[0] * size[1] < becomes[0] * becomes[1] / 4 && t('pictures.small'),
    across * up < 0.7 && t('pictures.long')
  ].filter(Boolean)
}
